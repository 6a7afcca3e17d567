"""The miniature: painted scenes and small models that run the whole pipeline offline in minutes."""
