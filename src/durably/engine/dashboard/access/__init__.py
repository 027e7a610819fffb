"""Access to the dashboard: the sign-in, its cookies, and the protection of forms."""
