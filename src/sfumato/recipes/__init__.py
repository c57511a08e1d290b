"""The recipes that ship with sfumato: one YAML file each."""
