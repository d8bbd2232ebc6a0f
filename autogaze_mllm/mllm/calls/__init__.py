"""What a wrapped model is asked, answers, and looks like to tools; how visual tokens come into its LLM."""
