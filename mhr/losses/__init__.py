"""What training minimises: the answers' likelihood, T-Few's losses of choices, AdaMix's consistency."""
