"""Into how many tiles an image is cut (InternVL's dynamic resolution); plain arithmetic."""

from __future__ import annotations


def tile_grid(width: int, height: int, tile_size: int = 448, max_tiles: int = 12) -> tuple[int, int]:
    """Choose the grid of tiles for an image.

    Of all grids with 1 to ``max_tiles`` tiles the one with the closest aspect ratio wins. Grids of the same ratio
    (1x1, 2x2, 3x3) are settled by area: the finer one is taken where the image has more than half its pixels.

    Args:
        width: image width in pixels.
        height: image height in pixels.
        tile_size: side of a tile in pixels.
        max_tiles: most tiles in the grid, without the thumbnail.

    Returns:
        ``(columns, rows)``; ``(4, 2)`` for 1920x1080.

    Raises:
        ValueError: if a size is not positive.
    """
    if min(width, height, tile_size, max_tiles) < 1:
        raise ValueError(
            "width, height, tile_size and max_tiles must be positive, found "
            f"{width}, {height}, {tile_size}, {max_tiles}"
        )
    grids = sorted(
        ((columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)),
        key=lambda grid: (grid[0] * grid[1], grid[0]),
    )
    best, best_difference = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        finer_is_worth_it = 2 * width * height > tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and finer_is_worth_it):
            best, best_difference = (columns, rows), difference
    return best
