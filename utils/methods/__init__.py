"""The mathematics: one file a method, and the list of them."""
