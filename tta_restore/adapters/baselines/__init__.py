"""Published baselines of test-time adaptation, for comparison."""
