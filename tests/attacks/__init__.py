"""One bad participant harms nobody but itself: attacks as they were done; each says what the enemy has and wants."""
