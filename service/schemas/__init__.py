"""Request and response models, by resource: the service and its client share them.

Requests are strict: a wrong type is an error, never a guess.
Importing them loads nothing heavier than pydantic.
"""
