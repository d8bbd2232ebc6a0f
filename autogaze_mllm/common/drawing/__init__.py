"""Drawing: colours, plots in one style, and names that are short enough for them."""
