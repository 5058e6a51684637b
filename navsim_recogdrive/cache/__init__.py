"""How a hidden state is stored and read back."""
