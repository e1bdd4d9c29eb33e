"""What is wrong with an estimator's option, said in one sentence."""


def require(holds: bool, name: str, value: float, wanted: str) -> None:
    """Raise ValueError unless the option's value is in its range. Ask positively, so that NaN does not hold."""
    if not holds:
        raise ValueError(f"options.{name} = {value:g}: it must be {wanted}")
