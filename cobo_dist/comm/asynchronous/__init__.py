"""Ranks that go at their own pace (`comm.mode=asynchronous`): their letters, and the exchange over these."""
