"""The nodes of a database: its leader, its followers, and the link between them."""
