"""What the explorer shows, computed by the library: pure functions, without a user interface."""
