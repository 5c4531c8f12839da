"""What a study's ``data:`` block says: which dataset, how it is split, what is made worse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["multiclass", "binary", "multilabel", "regression"]


class NoiseConfig(BaseModel):
    """Wrong labels put into the training and validation splits, never into the test split.

    Attributes:
        kind: ``symmetric``: to another class, each equally likely. ``asymmetric``: to the class
            that ``map`` gives, or, without a map, from class c to c + 1 (the last to the first).
        rate: The probability that a label is changed, in [0, 1).
        seed: What decides which labels; the study's seed where left out.
        map: For ``asymmetric``: class (name or number) to class; classes left out stay.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["symmetric", "asymmetric"] = "symmetric"
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0)] | None = None
    map: dict[int | str, int | str] | None = None

    @model_validator(mode="after")
    def _map_needs_asymmetric(self) -> NoiseConfig:
        if self.map is not None and self.kind == "symmetric":
            raise ValueError("'map' is for kind: asymmetric; symmetric noise has no map")
        return self


class ImbalanceConfig(BaseModel):
    """A long tail made by leaving out training samples; validation and test stay as they are.

    Attributes:
        factor: Size of the largest class over that of the smallest, at least 1.
        kind: ``exponential``: class c keeps ``n_max * factor ** (-c / (C - 1))`` samples.
            ``step``: the first half of the classes keeps ``n_max``, the rest ``n_max / factor``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    kind: Literal["exponential", "step"] = "exponential"


class BagsConfig(BaseModel):
    """Training samples in bags of which only the response as a whole is known.

    The bags are formed once, at random; batches hold whole bags, in an order that changes with
    each epoch, so that the batch size has to be a multiple of ``size``. Validation and test stay
    as they are.

    Attributes:
        size: Samples of a bag; the last one has what is left over.
        label: What takes the place of each of its samples' targets. ``proportion``: their mean,
            which of classes is the share of each, ``[B, C]`` (unknown multilabel ones left out).
            ``majority``: their most frequent class, of equal ones the first.
        seed: What decides which samples share a bag; the study's seed where left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=1)]
    label: Literal["proportion", "majority"] = "proportion"
    seed: Annotated[int, Field(ge=0)] | None = None


class SplitConfig(BaseModel):
    """The shares of all samples that validation and test get, and the seed that deals them out.

    A dataset that comes with a validation or a test part of its own keeps it; its share then has
    no effect, except that ``limit`` is shared out by it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _leaves_some_for_training(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing for training; "
                "their sum must be below 1"
            )
        return self


class DataConfig(BaseModel):
    """The ``data:`` block. Keys that are not listed here are the dataset's own parameters.

    Attributes:
        name: A dataset component (``lossearch plugins list --kind dataset``).
        noise: Label noise to add.
        imbalance: A long tail to make.
        bags: Bags of training samples to make, with one label each.
        split: How the samples are dealt out.
        limit: Use only this many samples of all, each class in its share.
        task: Overrides the task that the labels suggest.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    noise: NoiseConfig | None = None
    imbalance: ImbalanceConfig | None = None
    bags: BagsConfig | None = None
    split: SplitConfig = SplitConfig()
    limit: Annotated[int, Field(ge=1)] | None = None
    task: Task | None = None

    @property
    def params(self) -> dict[str, Any]:
        """The dataset component's own parameters."""
        return dict(self.model_extra or {})
