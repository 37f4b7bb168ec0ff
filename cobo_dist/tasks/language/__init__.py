"""Task `language`: a client a language, LoRA adapters over one frozen causal language model."""
