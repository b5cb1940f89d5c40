"""What only the pages of this book need: measurement protocols, the ledger, drawings that explain."""
