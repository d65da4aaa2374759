"""The ground on which our own methods are peft tuners: registration, configuration, layer and model."""
