"""K-Flow: flow matching along the K-amplitude."""
