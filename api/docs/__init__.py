"""The page ``/docs``: Swagger UI, from files of this installation."""
