"""The textual IR: a program as text, and back."""
