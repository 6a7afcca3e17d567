"""What every package may import and what imports none of them: documents and text from outside."""
