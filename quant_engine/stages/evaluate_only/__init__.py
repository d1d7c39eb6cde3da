"""The stages of a policy that measures a model and changes nothing."""
