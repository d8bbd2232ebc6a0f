"""Who runs the LLM: transformers in this process, or a vLLM that is reached by its URL."""
