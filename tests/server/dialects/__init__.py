"""Each dialect as a client sees it: rufh, tus, and what they share with the seed."""
