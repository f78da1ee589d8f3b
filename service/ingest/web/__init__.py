"""Fetching videos from the web. Off by default; nothing else imports it."""
