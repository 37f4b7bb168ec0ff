"""Task `language`: one language per client, LoRA adapters on a frozen causal language model."""
