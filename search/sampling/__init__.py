"""How configs are proposed."""
