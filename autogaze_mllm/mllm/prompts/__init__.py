"""From questions and conversations to token ids."""
