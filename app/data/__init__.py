"""Preference data: reading of pairs, items and chats from files and the hub; public data sets as pairs."""
