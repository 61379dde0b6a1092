"""What the runner tells the rest of the package about this process."""

# True while the runner imports the user's file: remote calls at module level
# then do nothing, else the program would call itself without end.
importing = False
