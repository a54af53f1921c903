"""Recurrent networks that a method can touch: layers, who reads whom, what is kept, and really smaller copies."""
