"""What two directors do for each other."""
