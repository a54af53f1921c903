"""Where a method is: on a model itself, on a part of it (a wrapper's, an average's), or on a whole that it is a part of."""

from torch import nn

PLACE = "_sparsernn_study"


def uncompiled(model):
    """The model that torch.compile was given, which has all of it; any other as it is."""
    return getattr(model, "_modules", {}).get("_orig_mod", model)


def studies(model):
    """Name → study, of the model ("") and of its parts that a method is on."""
    return {name: vars(module)[PLACE] for name, module in model.named_modules() if PLACE in vars(module)}


def refuse_no_model(model, to):
    """Raise TypeError for what is no model: its class, say. to: the function that was given it."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"{type(model).__name__}"
        instead = f", for example {model.__name__}(…)" if isinstance(model, type) else ""
        raise TypeError(f"{to} was given {what}; it takes a model, an instance of nn.Module{instead}")


def refuse_elsewhere(model, to):
    """Raise ValueError where a method is on a part or on a whole of the model, with what to do, or where it is no model. to:
    "compact", "attach"."""
    refuse_no_model(model, to)
    found = studies(model)
    if name := next((name for name in found if name), None):
        raise ValueError(
            f"a method is on model.{name}, not on the model: give {to} model.{name}, or study.detach() first"
        )
    carrying = (name for name, module in model.named_modules() if hasattr(module._modules.get("carried"), "method"))
    if not found and (name := next(carrying, None)) is not None:
        raise ValueError(
            f"{name or 'it'} belongs to a larger model with a method on it: give {to} that one, or study.detach() first; where "
            f"another model only shares it, give skip=[{name!r}] to attach for both"
        )
