"""What is made of a run's answers: tables, plots, documents."""
