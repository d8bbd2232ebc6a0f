"""A server under test, its clients, and a stand-in for vLLM that speaks its route."""
