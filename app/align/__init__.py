"""What rewards are for: put to work on whole data sets."""
