"""How well backbones transfer: runs under one recipe, their records, and the tables and plots made of them."""
