"""What the scripts share: how they read their arguments, measure, leave figures, and end."""
