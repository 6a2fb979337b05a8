/* Classifies one picture with a static library of mobilenet_tvm's, which needs no TVM.
 *
 * FILE is a binary PPM (P6) of any size, or the input tensor itself as raw float32.
 * How it is built: ../README.md. */
#include <stdio.h>
#include <string.h>

#include "mobilenet.h"

static float input[MOBILENET_INPUT_0_SIZE], scores[MOBILENET_OUTPUT_0_SIZE];
static unsigned char photo[1 << 25];

/* The centre of the photo, scaled as the header says: each pixel is the mean of those under it. */
static void preprocess(int width, int height)
{
    static const float mean[3] = MOBILENET_MEAN, std[3] = MOBILENET_STD;
    const double scale = (double)(width < height ? width : height) / MOBILENET_RESIZE_SHORTER;
    const double left = (width - scale * MOBILENET_WIDTH) / 2;
    const double top = (height - scale * MOBILENET_HEIGHT) / 2;

    for (int c = 0; c < 3; c++)
        for (int y = 0; y < MOBILENET_HEIGHT; y++)
            for (int x = 0; x < MOBILENET_WIDTH; x++) {
                const int from_y = (int)(top + y * scale), to_y = (int)(top + (y + 1) * scale);
                const int from_x = (int)(left + x * scale), to_x = (int)(left + (x + 1) * scale);
                double sum = 0;
                int count = 0;

                for (int i = from_y; i < height && (i < to_y || i == from_y); i++)
                    for (int j = from_x; j < width && (j < to_x || j == from_x); j++, count++)
                        sum += photo[3 * (i * width + j) + (MOBILENET_IS_BGR ? 2 - c : c)];
                input[(c * MOBILENET_HEIGHT + y) * MOBILENET_WIDTH + x] =
                    (float)(sum / (count ? count : 1) / 255 - mean[c]) / std[c];
            }
}

/* 0 if the file was read into input. */
static int read_input(const char *path)
{
    FILE *file = fopen(path, "rb");
    int width, height, status = -1;
    char magic[3] = "";

    if (file == NULL)
        return -1;
    if (fscanf(file, "%2s", magic) == 1 && strcmp(magic, "P6") == 0) {
        if (fscanf(file, "%d %d 255", &width, &height) == 2 && width > 0 && height > 0 &&
            3LL * width * height <= (long long)sizeof photo && fgetc(file) != EOF &&
            fread(photo, 3, (size_t)width * height, file) == (size_t)width * height) {
            preprocess(width, height);
            status = 0;
        }
    } else {
        rewind(file);
        status = fread(input, sizeof input, 1, file) == 1 ? 0 : -1;
    }
    fclose(file);
    return status;
}

int main(int argc, char **argv)
{
    int best = 0;

    if (argc != 2 || read_input(argv[1]) != 0) {
        fprintf(stderr, "usage: %s FILE: a PPM (P6) or raw float32\n", argv[0]);
        return 2;
    }
    if (mobilenet_run(input, scores) != 0)
        return 3;
    for (int i = 1; i < MOBILENET_OUTPUT_0_SIZE; i++)
        if (scores[i] > scores[best])
            best = i;
    printf("class %d, score %.4f\n", best, scores[best]);
    return 0;
}
