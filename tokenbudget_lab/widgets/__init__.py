"""What moves in a notebook while calls run: core ipywidgets, fed by pure functions."""
