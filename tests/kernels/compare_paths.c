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

static float small(void) { return ((float)(random_bits() >> 8) - 8388608.0f) * 1e-8f; }

static float *random_floats(int64_t count, float offset)
{
    float *x = malloc(4 * (size_t)count);
    for (int64_t i = 0; i < count; i++) x[i] = offset + small();
    return x;
}

/* A matrix whose buffers have exactly the size that its format needs; `owned` gets what has to be freed. */
static struct matrix random_matrix(int64_t format, int64_t out, int64_t in, int int8_inputs, void **owned)
{
    struct matrix m = {NULL, NULL, out, in, format, int8_inputs};
    const int64_t groups = blocks_of(out, SIDE) * blocks_of(in, INT4_GROUP) * SIDE * 2;
    float *weight = random_floats(out * in, 0), *scale = format == INT4 ? malloc((size_t)groups) : random_floats(out, 0.1f);
    owned[1] = scale;
    if (format == TERNARY) {
        int8_t *codes = malloc((size_t)(out * in));
        owned[0] = malloc((size_t)(blocks_of(out, SIDE) * blocks_of(in, SIDE) * TILE));
        decoder_ternarize(weight, out, in, scale, codes);
        failures += ternary_pack(codes, out, in, 0, owned[0], 1) != OK;
        free(codes);
    } else {
        owned[0] = malloc((size_t)(blocks_of(out, SIDE) * tile_bytes(format, in)));
        failures += decoder_pack(format, weight, out, in, owned[0], format >= INT8 ? scale : NULL, 2) != OK;
    }
    free(weight);
    m.data = owned[0], m.scale = format == TERNARY || format >= INT8 ? scale : NULL;
    return m;
}

/* A text longer than a chunk beside a short one, then a step of both: logits have the same bits on every path. */
static void decoding(int path, int64_t head_format, int64_t format, int int8_inputs, int sub_norm, int relu2)
{
    enum { VOCAB = 37, WIDTH = 36, HEADS = 6, KV = 2, DIM = 6, INNER = 52, LAYERS = 2, LENGTH = 160 };
    void *owned[64] = {0};
    struct layer layers[LAYERS];
    struct model m = {VOCAB, WIDTH, LAYERS, HEADS, KV, DIM, INNER, LENGTH, relu2, 1e-5, 0, 0, 0, layers, {0}, {0}};
    int at = 0;
    owned[at++] = (void *)(m.cos = random_floats(LENGTH * DIM / 2, 0.5f)), owned[at++] = (void *)(m.sin = random_floats(LENGTH * DIM / 2, 0.5f));
    owned[at++] = (void *)(m.final_norm = random_floats(WIDTH, 1));
    m.embeddings = random_matrix(head_format == INT4 ? INT8 : head_format, VOCAB, WIDTH, 0, owned + at), at += 2;
    m.head = random_matrix(head_format, VOCAB, WIDTH, 0, owned + at), at += 2;
    for (int l = 0; l < LAYERS; l++) {
        float *attn_norm = random_floats(WIDTH, 1), *ffn_norm = random_floats(WIDTH, 1), *first = random_floats(WIDTH, 1), *second = random_floats(INNER, 1);
        owned[at++] = attn_norm, owned[at++] = ffn_norm, owned[at++] = first, owned[at++] = second;
        layers[l] = (struct layer){attn_norm, ffn_norm, sub_norm ? first : NULL, sub_norm ? second : NULL, {0}, {0}, {0}, {0}};
        layers[l].qkv = random_matrix(format, WIDTH + 2 * KV * DIM, WIDTH, int8_inputs, owned + at), at += 2;
        layers[l].attn_out = random_matrix(format, WIDTH, WIDTH, int8_inputs, owned + at), at += 2;
        layers[l].gate_up = random_matrix(format, 2 * INNER, WIDTH, int8_inputs, owned + at), at += 2;
        layers[l].down = random_matrix(format, WIDTH, INNER, int8_inputs, owned + at), at += 2;
    }

    enum { TOKENS = 147, STEP = 2 };
    int64_t ids[TOKENS], row[TOKENS], position[TOKENS], want[2] = {139, TOKENS - 1}, both[2] = {0, 1};
    int64_t capacity[2] = {144, 16}, last_row[2] = {0, 1}, last[2] = {140, 7};
    for (int t = 0; t < TOKENS; t++) ids[t] = random_bits() % VOCAB, row[t] = t >= 140, position[t] = t >= 140 ? t - 140 : t;
    float *logits[2];
    for (int k = 0; k < 2; k++) {
        const int used = k ? path : SCALAR;
        float *cache[2];
        logits[k] = malloc(4 * VOCAB * 4);
        for (int i = 0; i < 2; i++) cache[i] = malloc(4 * (size_t)decoder_cache_floats(&m, capacity[i]));
        struct batch prompt = {TOKENS, ids, row, position, 2, cache, capacity, 2, want, logits[k]};
        struct batch step = {STEP, ids, last_row, last, 2, cache, capacity, 2, both, logits[k] + 2 * VOCAB};
        void *workspace = malloc((size_t)decoder_workspace(&m, TOKENS));
        failures += decoder_forward(used, &m, &prompt, workspace, 1 + k) != OK;
        failures += decoder_forward(used, &m, &step, workspace, 1 + 2 * k) != OK;

        /* What does not fit the model or a cache is refused before anything is touched. */
        int64_t wrong_id[2] = {VOCAB, 0}, far[2] = {144, 0}, descending[2] = {1, 0}, third[2] = {2, 0};
        struct batch wrong[] = {step, step, step, step};
        wrong[0].ids = wrong_id, wrong[1].position = far, wrong[2].want = descending, wrong[3].row = third;
        for (int i = 0; i < 4; i++) failures += decoder_forward(used, &m, &wrong[i], workspace, 1) != INVALID_BATCH;
        free(workspace), free(cache[0]), free(cache[1]);
    }
    compare(logits[0], logits[1], 4 * VOCAB * 4, "logits", path, head_format, format, int8_inputs);
    for (int i = 0; i < 4 * VOCAB; i++) failures += !(fabsf(logits[0][i]) < 1e6f);
    free(logits[0]), free(logits[1]);
    for (int i = 0; i < at; i++) free(owned[i]);
}

/* Random float32 or bfloat16 values, and outputs of as many bytes, exactly. */
static struct floats random_tensor(int64_t count, int64_t bf16)
{
    struct floats x = {malloc((size_t)(count * (bf16 ? 2 : 4))), bf16};
    for (int64_t i = 0; i < count; i++) {
        float value = ((float)(random_bits() >> 8) - 8388608.0f) * (i % 5 ? 1e-6f : 1e-8f);
        if (bf16) ((uint16_t *)x.data)[i] = (uint16_t)((uint32_t)bits_of(value) >> 16);
        else ((float *)x.data)[i] = value;
    }
    return x;
}

static void same(struct floats a, struct floats b, int64_t count, const char *what, int path, int64_t n, int64_t width)
{
    compare(a.data, b.data, (size_t)(count * (a.bf16 ? 2 : 4)), what, path, 0, width, n);
    free(a.data), free(b.data);
}

static void gradients(int path, int64_t n, int64_t half, int bf16, int gated, int relu2)
{
    const int64_t width = 2 * half;
    struct floats grad = random_tensor(n * (gated ? half : width), bf16), gate_up = random_tensor(n * width, !bf16 && relu2);
    struct floats scale = random_tensor(width, 0), factor = random_tensor(n, 0), scaled[2], step[2], gated_values[2], inverse[2];
    int8_t *codes[4];
    for (int k = 0; k < 2; k++) {
        const int used = k ? path : SCALAR;
        scaled[k] = random_tensor(n * width, bf16), step[k] = random_tensor(n, 0), codes[k] = malloc((size_t)(n * width));
        gated_values[k] = random_tensor(n * half, bf16), inverse[k] = random_tensor(n, 0), codes[2 + k] = malloc((size_t)(n * half));
        struct gradient job = {grad, gated ? gate_up : (struct floats){0}, scaled[k], relu2, n, width, scale.data, factor.data, codes[k], step[k].data};
        failures += training_gradient(used, &job, 1 + 2 * k) != OK;
        struct gating gating = {gate_up, gated_values[k], relu2, n, half, NULL, 1e-5, NULL, NULL, NULL};
        failures += training_gate(used, &gating, 1 + k) != OK;
        gating.out.data = NULL, gating.codes = codes[2 + k], gating.step = step[k].data;
        if (gated) gating.norm = scale.data, gating.inverse = inverse[k].data;
        failures += training_gate(used, &gating, 1 + k) != OK;
    }
    compare(codes[0], codes[1], (size_t)(n * width), "codes of a gradient", path, 0, width, n);
    compare(codes[2], codes[3], (size_t)(n * half), "gated codes", path, 0, half, n);
    same(scaled[0], scaled[1], n * width, "scaled gradient", path, n, width);
    same(gated_values[0], gated_values[1], n * half, "gate", path, n, half);
    same(step[0], step[1], n, "gated step", path, n, half);
    if (gated) compare(inverse[0].data, inverse[1].data, 4 * (size_t)n, "gated inverse", path, 0, half, n);
    for (int k = 0; k < 4; k++) free(codes[k]);
    free(inverse[0].data), free(inverse[1].data), free(grad.data), free(gate_up.data), free(scale.data), free(factor.data);
}

static void norms(int path, int64_t n, int64_t in, int bf16)
{
    struct floats grad = random_tensor(n * in, bf16), x = random_tensor(n * in, !bf16), weight = random_tensor(in, 0), inverse = random_tensor(n, 0);
    struct floats grad_x[2], grad_weight[2];
    const int64_t parts = blocks_of(n, 3);
    for (int k = 0; k < 2; k++) {
        struct floats sums = random_tensor(parts * in, 0);
        grad_x[k] = random_tensor(n * in, !bf16), grad_weight[k] = random_tensor(in, 0);
        struct norm_gradient job = {grad, x, grad_x[k], n, in, parts, inverse.data, weight.data, sums.data, grad_weight[k].data};
        failures += training_norm(k ? path : SCALAR, &job, 1 + 2 * k) != OK;
        free(sums.data);
    }
    same(grad_x[0], grad_x[1], n * in, "norm's gradient", path, n, in);
    same(grad_weight[0], grad_weight[1], in, "norm's weight gradient", path, n, in);
    free(grad.data), free(x.data), free(weight.data), free(inverse.data);
}

static void heads(int path, int64_t tokens, int64_t d, int bf16, int back)
{
    enum { TEXTS = 2, QUERY = 3, KEY = 2, ALL = QUERY + 2 * KEY };
    struct floats rows[2], part[2], cosine = random_tensor(tokens * d, 0), sine = random_tensor(tokens * d, 0);
    const uint32_t seed = state;
    const int64_t n = TEXTS * tokens;
    for (int k = 0; k < 2; k++) { /* heads as attention gives them back: tokens before heads */
        state = seed;
        rows[k] = random_tensor(n * ALL * d, bf16), part[k] = random_tensor(n * ALL * d, !bf16);
        struct rotary job = {rows[k], {{0}}, !bf16, back, n, tokens, d, d, cosine.data, sine.data};
        for (int i = 0, first = 0; i < 3; i++) {
            const int64_t count = i ? KEY : QUERY, size = bf16 ? 4 : 2;
            job.part[i] = (struct heads){(char *)part[k].data + first * d * size, count, tokens * ALL * d, d, ALL * d};
            first += (int)count;
        }
        failures += training_rotary(k ? path : SCALAR, &job, 1 + k) != OK;
    }
    same(rows[0], rows[1], n * ALL * d, "rows of heads", path, n, d);
    same(part[0], part[1], n * ALL * d, "heads", path, n, d);
    free(cosine.data), free(sine.data);
}

static void losses(int path, int64_t n, int64_t vocab, int bf16)
{
    struct floats weight = random_tensor(n, 0), logits[2], loss[2];
    int64_t *target = malloc(8 * (size_t)n);
    for (int64_t i = 0; i < n; i++) target[i] = random_bits() % vocab;
    if (n > 2) ((float *)weight.data)[1] = 0, target[1] = -100;
    const uint32_t seed = state;
    for (int k = 0; k < 2; k++) {
        state = seed;
        logits[k] = random_tensor(n * vocab, bf16), loss[k] = random_tensor(n, 0);
        struct cross_entropy job = {logits[k], n, vocab, target, weight.data, loss[k].data};
        failures += training_cross_entropy(k ? path : SCALAR, &job, 1 + k) != OK;
        int64_t kept = target[0];
        target[0] = vocab;
        failures += training_cross_entropy(k ? path : SCALAR, &job, 1) != INVALID_BATCH;
        target[0] = kept;
    }
    same(logits[0], logits[1], n * vocab, "gradient of logits", path, n, vocab);
    same(loss[0], loss[1], n, "losses", path, n, vocab);
    free(weight.data), free(target);
}

static void latents(int path, int64_t out, int64_t in)
{
    struct floats weight = random_tensor(out * in, 0), scale[2];
    const int64_t rows[] = {out - out / 3, out / 3};
    const size_t size = (size_t)(blocks_of(out, SIDE) * blocks_of(in, SIDE) * TILE);
    double *sums = malloc(8 * (size_t)out);
    uint8_t *packed[2], *turned[2], *again = malloc(size);
    int8_t *codes = malloc((size_t)(out * in));
    for (int k = 0; k < 2; k++) {
        scale[k] = random_tensor(out, 0), packed[k] = malloc(size), turned[k] = malloc(size);
        struct latent job = {weight.data, out, in, 1 + (out > 2), rows, 0, scale[k].data, sums, packed[k], turned[k]};
        if (out <= 2) job.rows = &out;
        failures += training_pack(k ? path : SCALAR, &job, 1 + 2 * k) != OK;
    }
    failures += ternary_unpack(packed[1], out, in, codes) != OK || ternary_pack(codes, in, out, 1, again, 1) != OK;
    compare(packed[0], packed[1], size, "latent weights", path, out, in, 0);
    compare(turned[0], turned[1], size, "latent weights transposed", path, out, in, 0);
    compare(turned[1], again, size, "one orientation and the other", path, out, in, 0);
    same(scale[0], scale[1], out, "scales", path, 0, out);
    for (int k = 0; k < 2; k++) free(packed[k]), free(turned[k]);
    free(weight.data), free(sums), free(again), free(codes);
}

static void training(int path, int64_t n, int64_t width)
{
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (int i = 0; i < 4; i++) gradients(path, n, width, bf16, i / 2, i % 2);
        norms(path, n, width, bf16);
        losses(path, n, width * width, bf16);
        for (int back = 0; back < 2; back++) heads(path, n, 2 * (1 + width % 40), bf16, back);
    }
    latents(path, n, width), latents(path, width, n);
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
        for (int64_t head = FLOAT32; head < FORMATS; head++) {
            decoding(path, head, TERNARY, 1, head % 2, head / 2 % 2);
            for (int bytes = 0; bytes < 2; bytes++) decoding(path, FLOAT32, head, bytes, head / 2 % 2, head % 2);
        }
        for (int a = 0; a < 6; a++) training(path, rows[a], sides[a % 7 + 1]);
        training(path, 65, 300);
        printf("%s ", names[path]);
    }
    printf("%d comparisons, %d failures\n", comparisons, failures);
    return failures != 0;
}
