"""The template's vocabulary: places and their usual content, light, weather, looks, positions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """A place, such as "on" a "sandy beach".

    ``shows`` names the things that an image of the place usually shows. Such a label cannot be left out of the image.
    """

    preposition: str
    noun: str
    shows: tuple[str, ...]
    outdoors: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """Return its noun, and the things that it shows."""
        return (self.noun, *self.shows)


_OPEN = ("sky", "cloud", "ground", "earth", "horizon", "sun")
_GREEN = (*_OPEN, "grass", "plant", "tree", "bush", "leaf", "flower", "soil")
_BUILT = (*_OPEN, "building", "wall", "window", "door", "road", "street", "sidewalk", "pavement", "house", "brick")
_TRAFFIC = (
    *("car", "car (automobile)", "traffic light", "street sign", "signboard", "streetlight", "lamppost", "stop sign"),
    *("person", "people", "bicycle", "bus", "truck", "sign", "pole", "awning", "banner", "fireplug", "fire hydrant"),
)
_INDOORS = ("wall", "floor", "ceiling", "window", "door", "light", "lamp", "furniture", "room", "wood")
_FURNISHED = (*_INDOORS, "chair", "table", "curtain", "carpet", "rug", "cabinet", "shelf", "painting", "picture")

SCENES = (
    Scene("on", "sandy beach", (*_OPEN, "sand", "sea", "water", "ocean", "wave", "shore", "shell")),
    Scene("on", "pebble shore", (*_OPEN, "stone", "rock", "sea", "water", "ocean", "wave", "pebble")),
    Scene("in", "grassy field", (*_GREEN, "field", "hill")),
    Scene("in", "flowering meadow", (*_GREEN, "field", "meadow", "hill")),
    Scene("in", "pine forest", (*_GREEN, "forest", "wood", "trunk", "branch", "cone")),
    Scene("on", "mountain pasture", (*_GREEN, "mountain", "hill", "rock", "snow", "pasture")),
    Scene("by", "calm lake", (*_GREEN, "water", "shore", "lake", "mountain", "hill")),
    Scene("on", "rocky hillside", (*_OPEN, "rock", "stone", "hill", "mountain", "grass")),
    Scene("in", "dry desert", (*_OPEN, "sand", "dune", "hill", "rock", "desert", "cactus")),
    Scene("in", "snowy landscape", (*_OPEN, "snow", "ice", "mountain", "hill", "tree")),
    Scene("in", "city park", (*_GREEN, "path", "bench", "person", "people", "lamppost", "park")),
    Scene("in", "back garden", (*_GREEN, "garden", "fence", "wall", "pot", "flowerpot", "hose", "potted plant")),
    Scene("on", "gravel path", (*_GREEN, "gravel", "stone", "path")),
    Scene("on", "wooden pier", (*_OPEN, "wood", "pier", "sea", "water", "boat", "rope", "plank", "railing")),
    Scene("in", "paved courtyard", (*_BUILT, "stone", "courtyard", "potted plant", "floor")),
    Scene("on", "village square", (*_BUILT, *_TRAFFIC, "stone", "bench", "tree", "square", "clock", "tower")),
    Scene("on", "city street", (*_BUILT, *_TRAFFIC)),
    Scene("in", "car park", (*_OPEN, *_TRAFFIC, "parking meter", "road", "building", "asphalt", "park")),
    Scene("on", "flat rooftop", (*_OPEN, "building", "roof", "wall", "chimney", "antenna", "railing", "city")),
    Scene("in", "brick alley", (*_BUILT, "trash can", "garbage", "alley", "dustbin")),
    Scene("on", "country road", (*_GREEN, "road", "asphalt", "field", "fence", "hill")),
    Scene("in", "farmyard", (*_OPEN, "barn", "building", "fence", "hay", "straw", "wood", "mud", "house", "chicken")),
    Scene(
        "in",
        "bright living room",
        (*_FURNISHED, "sofa", "couch", "cushion", "pillow", "television set", "tv"),
        outdoors=False,
    ),
    Scene(
        "in",
        "tidy bedroom",
        (*_FURNISHED, "bed", "pillow", "blanket", "bedclothes", "quilt", "mattress"),
        outdoors=False,
    ),
    Scene(
        "in",
        "tiled kitchen",
        (*_FURNISHED, "sink", "faucet", "oven", "stove", "refrigerator", "pot", "tile", "pan"),
        outdoors=False,
    ),
    Scene(
        "in",
        "tiled bathroom",
        (*_INDOORS, "bathtub", "sink", "toilet", "mirror", "towel", "faucet", "tile"),
        outdoors=False,
    ),
    Scene(
        "in",
        "plain office",
        (*_FURNISHED, "desk", "computer", "monitor", "keyboard", "paper", "telephone"),
        outdoors=False,
    ),
    Scene(
        "in",
        "cluttered workshop",
        (*_FURNISHED, "tool", "hammer", "box", "bench", "saw", "workbench"),
        outdoors=False,
    ),
    Scene("in", "bare concrete hall", (*_INDOORS, "concrete", "hall", "pillar", "column"), outdoors=False),
    Scene("in", "photo studio", (*_INDOORS, "camera", "backdrop", "tripod", "paper", "studio"), outdoors=False),
    Scene("on", "wooden tabletop", ("table", "wood", "tabletop", "wall", "dining table", "desk"), outdoors=False),
    Scene("on", "white countertop", ("counter", "countertop", "kitchen", "wall", "table", "tile"), outdoors=False),
    Scene("on", "stone floor", ("stone", "floor", "tile", "wall", "ground"), outdoors=False),
    Scene("in", "long corridor", (*_INDOORS, "corridor", "hallway"), outdoors=False),
)
OUTDOOR_LIGHT = (
    *("at sunrise", "at noon", "at dusk", "on a sunny afternoon", "on an overcast day", "in light rain"),
    *("in thin fog", "after rain", "in warm evening light", "under a clear sky", "on a winter morning"),
)
INDOOR_LIGHT = (
    *("in soft daylight", "in bright daylight", "in warm evening light", "in dim light", "under a bright lamp"),
    *("in cool morning light", "with long shadows"),
)
OPENINGS = (
    *("a photo of ", "a photograph of ", "a colour photo of ", "a detailed photo of ", "a wide-angle photo of "),
    *("a candid snapshot of ", "a professional photo of ", "an amateur photo of ", ""),
)
VIEWS = (
    *("seen from above", "seen at eye level", "seen from a low angle", "in sharp focus", "with a blurred background"),
    *("with fine grain", "in muted colours", "in vivid colours"),
)
SIZES = ("large", "small", "tiny", "big")
LOOKS = (
    *("red", "blue", "green", "yellow", "brown", "black", "white", "grey", "pale", "colourful"),
    *("old", "new", "shiny", "dusty", "sunlit", "wet", "clean", "well-worn"),
)
LOOKS_OF_PEOPLE = (
    *("smiling", "tall", "young", "elderly", "standing", "seated", "walking", "well-dressed", "tired", "cheerful"),
)
PEOPLE = frozenset(
    {"person", "people", "man", "woman", "child", "boy", "girl", "baby", "human", "pedestrian", "rider"}
)
POSITIONS = (
    *("on the left", "on the right", "in the middle", "in the foreground", "in the background"),
    *("close to the camera", "near the edge", "partly in shadow"),
)
COUNTS = ("two", "three", "several", "a few")
EMPTY = "empty"  # describes a scene without objects
