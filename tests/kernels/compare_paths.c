/* Compare every path that this CPU has with the scalar one, bit for bit, on generated data. Needs no Python, so that it runs under
 * an emulator of another processor and under the sanitizers. Buffers have exactly the size that the functions are promised. */
#include "ternary.c"
#include <stdio.h>

static uint32_t state = 1;
static uint32_t random_bits(void) { return state = state * 1664525u + 1013904223u; }
static int failures, comparisons;

static void compare(const void *a, const void *b, size_t size, const char *what, int path, int64_t out, int64_t in, int64_t n)
{
    comparisons++;
    if (memcmp(a, b, size) == 0) return;
    failures++;
    printf("%s differs on path %d: out %d, in %d, rows %d\n", what, path, (int)out, (int)in, (int)n);
}

static void products(int path, int64_t out, int64_t in, int64_t n, int extreme)
{
    int8_t *codes = malloc((size_t)(out * in)), *transposed = malloc((size_t)(out * in)), *back = malloc((size_t)(out * in));
    int8_t *x = malloc((size_t)(n * in));
    size_t size = (size_t)(blocks_of(out, SIDE) * blocks_of(in, SIDE) * TILE);
    uint8_t *packed = malloc(size), *from_transposed = malloc(size);
    int32_t *expected = malloc(4 * (size_t)(n * out)), *sums = malloc(4 * (size_t)(n * out));
    float *y = malloc(4 * (size_t)(n * out)), *y_expected = malloc(4 * (size_t)(n * out));
    float *step = malloc(4 * (size_t)n), *scale = malloc(4 * (size_t)out);

    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++)
            codes[o * in + i] = transposed[i * out + o] = (int8_t)(extreme ? (o % 2 ? -1 : 1) : (int)(random_bits() >> 16) % 3 - 1);
    for (int64_t i = 0; i < n * in; i++) x[i] = (int8_t)(extreme ? (i / in % 2 ? 127 : -128) : (int)(random_bits() >> 20));
    for (int64_t i = 0; i < n; i++) step[i] = 1e-3f * (float)(1 + random_bits() % 1000);
    for (int64_t i = 0; i < out; i++) scale[i] = 1e-3f * (float)(1 + random_bits() % 1000);
    for (int64_t r = 0; r < n; r++)
        for (int64_t o = 0; o < out; o++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < in; i++) sum += codes[o * in + i] * x[r * in + i];
            expected[r * out + o] = sum;
            y_expected[r * out + o] = (float)sum * scale[o] * step[r];
        }

    for (int threads = 1; threads <= 3; threads++) {
        failures += ternary_pack(codes, out, in, 0, packed, threads) != OK;
        failures += ternary_pack(transposed, out, in, 1, from_transposed, threads) != OK;
        failures += ternary_unpack(packed, out, in, back) != OK;
        compare(packed, from_transposed, size, "packing the transposed matrix", path, out, in, n);
        compare(back, codes, (size_t)(out * in), "unpacking", path, out, in, n);
        failures += ternary_sums(path, packed, out, in, x, n, sums, threads) != OK;
        compare(sums, expected, 4 * (size_t)(n * out), "sums", path, out, in, n);
        failures += ternary_product(path, packed, out, in, x, n, step, scale, y, threads) != OK;
        compare(y, y_expected, 4 * (size_t)(n * out), "product", path, out, in, n);
    }
    free(codes), free(transposed), free(back), free(x), free(packed), free(from_transposed), free(expected), free(sums);
    free(y), free(y_expected), free(step), free(scale);
}

static void quantizing(int path, int64_t n, int64_t in, int bf16)
{
    size_t count = (size_t)(n * in);
    float *x = malloc(4 * count), *columns = malloc(4 * (size_t)in), *step[2], *inverse[2];
    uint16_t *narrow = malloc(2 * count);
    int8_t *codes[2];
    for (int64_t i = 0; i < n * in; i++) x[i] = ((float)(random_bits() >> 8) - 8388608.0f) * (i % 7 ? 1e-6f : 1e-9f);
    for (int64_t i = 0; i < n * in; i++) narrow[i] = (uint16_t)((uint32_t)bits_of(x[i]) >> 16);
    for (int64_t i = 0; i < in; i++) columns[i] = (float)(random_bits() >> 24) * 0.01f;
    for (int k = 0; k < 2; k++) codes[k] = malloc(count), step[k] = malloc(4 * (size_t)n), inverse[k] = malloc(4 * (size_t)n);

    const void *input = bf16 ? (const void *)narrow : (const void *)x;
    for (int mode = 0; mode < 3; mode++) {
        for (int k = 0; k < 2; k++)
            failures += ternary_quantize(k ? path : SCALAR, input, bf16, n, in, mode ? columns : NULL, 1e-5f, codes[k], step[k],
                                         mode == 2 ? inverse[k] : NULL, 1 + k) != OK;
        compare(codes[0], codes[1], count, "codes", path, 0, in, n);
        compare(step[0], step[1], 4 * (size_t)n, "step", path, 0, in, n);
        if (mode == 2) compare(inverse[0], inverse[1], 4 * (size_t)n, "inverse", path, 0, in, n);
    }
    for (int k = 0; k < 2; k++) free(codes[k]), free(step[k]), free(inverse[k]);
    free(x), free(narrow), free(columns);
}

int main(void)
{
    static const char *names[PATHS] = {"scalar", "avx2", "avx_vnni", "avx512_vnni", "neon"};
    static const int64_t sides[] = {1, 3, 15, 16, 17, 33, 64, 100, 272};
    static const int64_t rows[] = {1, 2, 3, 7, 8, 70};
    const int count = sizeof sides / sizeof *sides;

    for (int path = 0; path < PATHS; path++) {
        if (!usable(path)) continue;
        for (int a = 0; a < count; a++)
            for (int b = 0; b < count; b += 1 + a % 2)
                products(path, sides[a], sides[b], rows[(a + b) % 6], (a + b) % 3 == 0);
        products(path, 200, 700, 70, 0); /* enough work for several threads */
        products(path, 17, 5000, 9, 1);
        for (int a = 0; a < count; a++) quantizing(path, rows[a % 6], sides[a], a % 2), quantizing(path, 9, 40 * sides[a], a % 2 == 0);
        printf("%s ", names[path]);
    }
    printf("%d comparisons, %d failures\n", comparisons, failures);
    return failures != 0;
}
