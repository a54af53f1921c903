"""A small model as one file of C99: weights and code, nothing allocated, nothing needed but math.h, stdint.h and string.h.

The code is that of `chain.Chain`, one step at a time: what a level reads and carries is multiplied row by row (`arrays`),
constant gates (1812.05692) are numbers in the place of rows. In int8 what a weight multiplies is rounded too: states,
which lie between −1 and 1, to steps of 1/127, numbers given as input by their largest; input that is not finite, which has
none, is refused. Sums and states stay float32.
"""

import torch

from ..engines.chain import chain_of
from ..files import nearest, replacing
from .arrays import Array, Matrix
from .helpers import HELPERS

WEIGHTS = ("float32", "int8")
SQUASH = {"logistic": "logistic", "hard": "hard", "tanh": "tanhf", "relu": "relu"}
CARRIED = {  # gates → what a neuron carries from step to step, and how; h, c: its states
    "ifgo": ("hc", ["{c} = f * {c} + i * g;", "{h} = o * tanhf({c});"]),
    "rzn": ("h", ["{h} = n + z * ({h} - n);"]),
    "h": ("h", ["{h} = h;"]),
}


def to_c(small, path, weights="float32"):
    """Write a model as one file of C99, atomically → bytes of its weights, biases and indices.

    small    what `compact` returned, or any model of the form: embedding, one-hot ids or numbers → LSTM, GRU or RNN layers,
             forwards → a linear layer, on the last or on every step
    weights  "float32", or "int8" with a scale a row (states in steps of 1/127)
    The file declares `model_state`, `model_reset`, `model_step` and `model_sequence`, for one sequence at a time; its head
    says what goes in and out, what is refused, and the bytes of weights, state and stack.
    Raises ValueError for another model, saying what is supported, and for numbers that are not finite.
    """
    if weights not in WEIGHTS:
        raise ValueError(nearest("weights", weights, WEIGHTS))
    source = Source(chain_of(small), int8=weights == "int8")
    with replacing(path) as temporary:
        temporary.write_text(source.text(), encoding="utf-8")
    return source.bytes


class Source:
    """The C of a chain. What it needs is noted as it is written: arrays, helpers, bytes on the stack of each level."""

    def __init__(self, chain, int8):
        self.chain, self.int8, self.weights = chain, int8, WEIGHTS[int8]
        silent = [number for number, level in enumerate(chain.levels) if not level.hidden]
        self.levels = list(enumerate(chain.levels, 1))[silent[-1] + 1 if silent else 0 :]  # what is below says nothing
        self.arrays, self.called, self.stack, self.embedding = [], set(), [0], None
        for number, level in self.levels:
            if level.cell.activation not in SQUASH:
                raise ValueError(
                    f"level {number} is an {level.kind} of {level.cell.activation}; "
                    "supported: LSTM and GRU with logistic or hard gates, RNN of tanh or relu"
                )
            if int8 and level.cell.activation == "relu":
                raise ValueError(
                    f'level {number} is an RNN of relu, whose states have no bound to be rounded by; use weights="float32"'
                )
        self.functions = [self._level(number, level) for number, level in self.levels] + [self._answer()]
        self.functions += [self._advance(), *self._public()]
        if odd := next((array.name for array in self.arrays if not bool(array.values.float().isfinite().all())), None):
            raise ValueError(f"{odd} of {chain.name} holds numbers that are not finite in float32")

    @property
    def bytes(self):
        return sum(array.bytes for array in self.arrays)

    def text(self):
        helpers = [text for (name, of), text in HELPERS.items() if name in self.called and of in (None, self.weights)]
        arrays = [array.text() for array in self.arrays]
        parts = [self._head(), self._declarations(), *arrays, *helpers, *self.functions, "#endif\n"]
        return "\n".join(parts)

    # ---- head

    def _head(self):
        chain = self.chain
        refused = (
            "-1 for an id out of range" if chain.words else "-2 for a number that is not finite" if self.int8 else ""
        )
        returned = f"0, or {refused}: there they stop, the state is that before it" if refused else "0"
        lines = [
            f"{chain.name} as C99, its weights in {self.weights}. Made by sparsernn.to_c, with torch {torch.__version__}.",
            "",
            f"input    {self._input()}",
            f"output   {len(chain.bias)} numbers, " + ("of all steps up to this one" if chain.last else "of this step"),
            *(f"level {number}  {_described(level)}" for number, level in self.levels),
            f"weights  {self.bytes:,} bytes, with biases and indices, all of them constant",
            f"state    {4 * self._numbers():,} bytes: a model_state for each sequence that is under way",
            f"stack    {max(self.stack):,} bytes of arrays at a time",
            "",
            "model_reset(&state)                           before the first step of a sequence",
            "model_step(&state, input, output)             one step",
            "model_sequence(&state, input, steps, output)  as many; "
            + ("output of the last one" if chain.last else "outputs one after the other"),
            "",
            f"The last two return {returned}.",
            "From another file: define MODEL_DECLARATIONS, include this one, and link it.",
        ]
        return "/* " + "\n * ".join(lines).replace(" * \n", " *\n") + "\n */\n"

    def _input(self):
        chain = self.chain
        if chain.words is None:
            return f"{chain.inputs} numbers a step, float"
        ids, kept = f"one id a step, int32_t from 0 to {chain.words - 1}", len(chain.kept)
        return ids if kept == chain.words else f"{ids}; {kept} of them have weights, others are read as zeros"

    def _numbers(self):
        return sum(len(CARRIED[level.cell.gates][0]) * level.hidden for _, level in self.levels)

    def _declarations(self):
        states = [
            f"    float {name}{number}[{level.hidden}];"
            for number, level in self.levels
            for name in CARRIED[level.cell.gates][0]
        ]
        kind = "float" if self.chain.words is None else "int32_t"
        return "\n".join(
            [
                "#ifndef MODEL_DECLARED",
                "#define MODEL_DECLARED",
                "#include <stdint.h>",
                "",
                "typedef struct {",
                *(states or ["    char nothing;"]),
                "} model_state;",
                "",
                f"typedef {kind} model_input;",
                f"enum {{ MODEL_INPUTS = {self.chain.inputs}, MODEL_OUTPUTS = {len(self.chain.bias)} }};",
                "",
                "void model_reset(model_state *state);",
                "int model_step(model_state *state, const model_input *input, float *output);",
                "int model_sequence(model_state *state, const model_input *input, int steps, float *output);",
                "#endif",
                "",
                "#ifndef MODEL_DECLARATIONS",
                "#include <math.h>",
                "#include <string.h>",
                "",
            ]
        )

    # ---- what is multiplied

    def _call(self, name, *arguments):
        self.called.add(name)
        return f"{name}({', '.join(map(str, arguments))})"

    def _product(self, matrix, x, y, step="1.0f / 127"):
        """y += W x. step: of x, in int8."""
        rows, columns = matrix.weight.shape
        names = [matrix.name, *[matrix.name + "_runs"] * matrix.sparse, *[matrix.name + "_scale"] * self.int8]
        sizes = [rows] if matrix.sparse else [rows, columns]
        helper = "add_runs" if matrix.sparse else "add_dense"
        return self._call(helper, *names, *sizes, x, *[step] * self.int8, y) + ";"

    def _rounded(self, name, x, size):
        """Lines that make `name` of x, as weights in int8 are multiplied with it → lines, what to multiply."""
        if not self.int8:
            return [], x
        return [f"int8_t {name}[{size}];", self._call("quantised_state", x, size, name) + ";"], name

    # ---- functions

    def _level(self, number, level):
        rows = int(level.where.sum())
        takes, read, stack = self._reads(number, level)
        if rows:
            self.arrays.append(Array("float", f"bias_{number}", level.parts["bias"]))
            carried, more = self._carries(number, level)
            lines = [f"float a[{rows}];", f"memcpy(a, bias_{number}, sizeof a);", *read, *carried]
            stack += more + 4 * rows
        else:  # all gates are constant
            lines = [f"(void){takes.split()[-1].lstrip('*')};"] if takes else []
        self.stack.append(stack)
        names, steps = CARRIED[level.cell.gates]
        states = {name: f"state->{name}{number}[j]" for name in names}
        body = self._gates(number, level) + [step.format(**states) for step in steps]
        lines += [f"for (int j = 0; j < {level.hidden}; j++) {{", *("    " + line for line in body), "}"]
        given = f", {takes}" if takes else ""
        return _function(f"static void level_{number}(model_state *state{given})", lines, f"/* {_described(level)} */")

    def _carries(self, number, level):
        """What a level reads of its own state → lines, bytes on the stack."""
        products = []
        for letters, offset, weight in _lots(level):
            matrix = Matrix(f"recurrent_{number}{letters}", weight, self.int8)
            if not matrix.empty:
                self.arrays += matrix.arrays
                products.append((matrix, f"a + {offset}" if offset else "a"))
        if not products:
            return [], 0
        made, own = self._rounded("own", f"state->h{number}", level.hidden)
        return made + [self._product(matrix, own, y) for matrix, y in products], level.hidden * self.int8

    def _reads(self, number, level):
        """What a level reads → its parameter, lines, bytes on the stack."""
        weight, name = level.parts["weight_ih"], f"input_{number}"
        if number > 1:
            matrix = Matrix(name, weight, self.int8)
            if matrix.empty:
                return "", [], 0
            self.arrays += matrix.arrays
            made, below = self._rounded("below", f"state->h{number - 1}", weight.shape[1])
            return "", [*made, self._product(matrix, below, "a")], weight.shape[1] * self.int8
        if self.chain.words is not None:
            table = self._looks_up(number, level)
            if table.name == name:
                return "int row", self._row(table, "a"), 0
            self.embedding = table
        return self._reads_numbers(name, weight)

    def _reads_numbers(self, name, weight):
        matrix = Matrix(name, weight, self.int8)
        if matrix.empty:
            return "const float *x", ["(void)x;"], 0
        self.arrays += matrix.arrays
        if not self.int8:
            return "const float *x", [self._product(matrix, "x", "a")], 0
        size = weight.shape[1]
        lines = [f"int8_t whole[{size}];", f"const float step = {self._call('quantised', 'x', size, 'whole')};"]
        return "const float *x", [*lines, self._product(matrix, "whole", "a", "step")], size

    def _looks_up(self, number, level):
        """The table of what a word adds to the preactivations, where it is not larger than an embedding and what reads it;
        else that embedding, whose rows are numbers to be read."""
        weight, embedding = level.parts["weight_ih"], self.chain.embedding
        product = weight if embedding is None else weight @ embedding.T
        table = Matrix(f"input_{number}", product.T.contiguous(), self.int8, by_row=True)
        if embedding is None:
            return table
        apart = Matrix("embedding", embedding, self.int8, by_row=True)
        return apart if apart.bytes + Matrix("input", weight, self.int8).bytes < table.bytes else table

    def _row(self, table, y):
        """Lines that add a row of a table to y."""
        if table.empty:
            return ["(void)row;"]
        self.arrays += table.arrays
        names = [table.name, *[table.name + part for part in ("_runs", "_rows")] * table.sparse]
        names += [table.name + "_scale"] * self.int8
        helper, size = ("add_row_runs", []) if table.sparse else ("add_row", [table.weight.shape[1]])
        return ["if (row >= 0)", "    " + self._call(helper, *names, "row", *size, y) + ";"]

    def _gates(self, number, level):
        """A line for each gate of neuron j, in torch's order, for a gate may read the one before it."""
        cell, lines = level.cell, []
        squashed = {"g": "tanhf", "n": "tanhf", "h": SQUASH[cell.activation]}
        for gate, letter in enumerate(cell.gates):
            live, block = level.parts["live"][gate].bool(), cell.from_input[gate]
            if cell.moved_by and letter == "r" and not level.parts["live"][cell.gates.index("n")].any():
                continue  # nothing of n is left that it could move
            squash = squashed.get(letter, SQUASH[cell.activation])
            name, rows = f"{letter}_{number}", level.row_of[block]
            apart = int(level.row_of[cell.from_state[gate]][live][0] - rows[live][0]) if live.any() else 0

            def said(at, squash=squash, apart=apart):
                if apart:
                    return f"{squash}(a[{at}] + r * a[{at} + {apart}])"
                return f"{squash}(a[{at}])"

            self.called |= {squash} if live.any() else set()
            if live.all():
                start = int(rows[0])
                value = said(f"j + {start}" if start else "j")
            elif not live.any() and len(level.fixed[block].unique()) == 1:
                value = Array("float", "", level.fixed[block][:1]).literals()[0]
            else:
                self.arrays.append(Array("float", f"constant_{name}", level.fixed[block].masked_fill(live, 0)))
                value = f"constant_{name}[j]"
                if live.any():
                    self.arrays.append(Array("int32_t", f"row_{name}", rows))
                    value = f"row_{name}[j] < 0 ? {value} : {said(f'row_{name}[j]')}"
            lines.append(f"const float {letter} = {value};")
        return lines

    def _answer(self):
        self.arrays.append(Array("float", "head_bias", self.chain.bias))
        lines, head = ["memcpy(output, head_bias, sizeof head_bias);"], Matrix("head", self.chain.weight, self.int8)
        if head.empty:
            lines.append("(void)state;")
        else:
            self.arrays += head.arrays
            size = head.weight.shape[1]
            made, last = self._rounded("last", f"state->h{self.levels[-1][0]}", size)
            lines = made[:1] + lines + made[1:] + [self._product(head, last, "output")]
            self.stack.append(size * self.int8)
        return _function("static void answer(const model_state *state, float *output)", lines)

    def _advance(self):
        chain, lines, given = self.chain, [], "input"
        read = bool(self.levels) and self.levels[0][0] == 1  # else nothing that reads the input is left
        if chain.words is not None:
            lines += [f"if (*input < 0 || *input >= {chain.words})", "    return -1;"]
            given = self._place() if read else None
        elif self.int8:
            lines += [f"for (int k = 0; k < {chain.inputs}; k++)", "    if (!isfinite(input[k]))", "        return -2;"]
        elif not read:
            lines.append("(void)input;")
        if self.embedding is not None:
            size = self.embedding.weight.shape[1]
            lines += [f"float x[{size}] = {{0.0f}};", f"const int row = {given};", *self._row(self.embedding, "x")]
            given, self.stack[1] = "x", self.stack[1] + 4 * size  # that of level 1, which is called meanwhile
        for number, _ in self.levels:
            lines.append(f"level_{number}(state{', ' + given if number == 1 else ''});")
        lines += [] if self.levels else ["(void)state;"]
        return _function("static int advance(model_state *state, const model_input *input)", [*lines, "return 0;"])

    def _place(self):
        """The row of an id, as C has it."""
        words, kept = self.chain.words, self.chain.kept
        if not len(kept):
            return "-1"
        if len(kept) == words:
            return "*input"
        self.arrays.append(Array("uint16_t" if words <= 1 << 16 else "int32_t", "words", kept))
        return self._call("place", "*input", len(kept))

    def _public(self):
        stop = ["if (refused < 0)", "    return refused;"]
        step = ["const int refused = advance(state, input);", *stop, "answer(state, output);", "return 0;"]
        answers = "answer(state, output + (size_t)t * MODEL_OUTPUTS);"
        sequence = [
            "for (int t = 0; t < steps; t++) {",
            "    const int refused = advance(state, input + (size_t)t * MODEL_INPUTS);",
            *("    " + line for line in stop),
            *([] if self.chain.last else ["    " + answers]),
            "}",
            *(["answer(state, output);"] if self.chain.last else []),
            "return 0;",
        ]
        given = "model_state *state, const model_input *input,"
        return [
            _function("void model_reset(model_state *state)", ["memset(state, 0, sizeof *state);"]),
            _function(f"int model_step({given} float *output)", step),
            _function(f"int model_sequence({given} int steps, float *output)", sequence),
        ]


def _function(head, lines, comment=None):
    return "\n".join([*([comment] if comment else []), head, "{", *("    " + line for line in lines), "}\n"])


def _described(level):
    live, constant = int(level.parts["live"].sum()), len(level.parts["constant"])
    gates = f"{live} live gates" + (f" and {constant} constant ones" if constant else "")
    return f"{level.kind} ({level.cell.activation}) of {level.hidden} neurons, {gates}"


def _lots(level):
    """The state's weights by where their products land in the preactivations → letters, offset, weight of each lot.

    A GRU's n keeps the two products apart (see `cells.Cell`), so that its rows land behind a gap.
    """
    cell, counts = level.cell, level.parts["live"].sum(1).tolist()
    sizes = level.where.sum(1).tolist()
    lots = []
    for gate, weight in enumerate(level.parts["weight_hh"].split(counts)):
        block = cell.from_state[gate]
        if lots and lots[-1][-1] == block - 1:
            letters, offset, weights, _ = lots[-1]
            lots[-1] = letters + cell.gates[gate], offset, [*weights, weight], block
        else:
            lots.append((cell.gates[gate], sum(sizes[:block]), [weight], block))
    return [
        ("_" + letters if len(lots) > 1 else "", offset, torch.cat(weights)) for letters, offset, weights, _ in lots
    ]
