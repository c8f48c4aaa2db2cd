"""stub."""


def draw_demo(demo, scores):
    pass
