"""What holds for every request: headers, deadlines, errors, files, the OpenAPI document."""
