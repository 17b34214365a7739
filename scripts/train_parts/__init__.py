"""What scripts/train.py is told, what it trains, and where its numbers go."""
