"""Who may do what: API keys, browser sessions, limits for each client."""
