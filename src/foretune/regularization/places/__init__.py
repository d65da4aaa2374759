"""Where a model drops activations, or could: finding the places, naming them, giving them rates, leaving no trace."""
