// Walks through exec, attach and port-forward with Kubernetes' Node client; prints a line for each thing tried.
//   node walk.mjs PROTOCOL SERVER POD COMMANDS LINES TERMINAL
// COMMANDS, LINES and TERMINAL are containers of the pod, which tests/conformance/streaming.sh describes.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { PassThrough, Writable } from 'node:stream';
import { Attach, Exec, KubeConfig, PortForward } from '@kubernetes/client-node';
import { WebSocketHandler } from '@kubernetes/client-node/dist/web-socket-handler.js';
import WebSocket from 'isomorphic-ws';

const [protocol, server, pod, commands, lines, terminal] = process.argv.slice(2);
const halfCloses = protocol === 'v5.channel.k8s.io';
// How long anything may take, in milliseconds.
const time = 30_000;
// For a shell.
const awaitSize = 'until [ "$(stty size 2>/dev/null)" = "$size" ]; do sleep 0.01; done; echo is "$size"';

const config = new KubeConfig();
config.loadFromClusterAndUser({ name: 'any', server, skipTLSVerify: true }, { name: 'any' });
// By itself it offers all protocols that there ever were.
const handler = new WebSocketHandler(config, (url, _protocols, options) => new WebSocket(url, [protocol], options));

// What a stream brought.
class Output extends Writable {
    length = 0;
    text = '';
    hash = createHash('sha256');

    constructor(size) {
        super();
        // This is how the client knows a terminal.
        if (size) [this.columns, this.rows] = size;
    }

    _write(chunk, _encoding, done) {
        this.length += chunk.length;
        this.hash.update(chunk);
        if (this.length < 10_000) this.text += chunk;
        this.emit('text');
        done();
    }

    resize(columns, rows) {
        Object.assign(this, { columns, rows });
        this.emit('resize');
    }

    async expect(text) {
        while (!this.text.includes(text)) await once(this, 'text');
    }
}

// A command that was run: its streams, and its status when it is over.
class Command {
    static async start(command, { stdin = null, size } = {}) {
        const self = new Command();
        self.stdout = new Output(size);
        self.stderr = size ? null : new Output();
        self.status = new Promise((resolve, reject) => {
            new Exec(config, handler)
                .exec('any', pod, commands, command, self.stdout, self.stderr, stdin, Boolean(size), resolve)
                .then((socket) => assert.equal(socket.protocol, protocol))
                .catch(reject);
        });
        return self;
    }

    // How it ended: the word, and the exit code if the status has one.
    async end() {
        const { status, reason, details } = await this.status;
        if (reason !== 'NonZeroExitCode') return [status];
        assert.equal(details.causes[0].reason, 'ExitCode');
        return [status, details.causes[0].message];
    }
}

const steps = {
    async 'output and success'() {
        const command = await Command.start(['sh', '-c', 'echo out; echo err >&2']);
        assert.deepEqual(await command.end(), ['Success']);
        assert.deepEqual([command.stdout.text, command.stderr.text], ['out\n', 'err\n']);
    },

    async 'exit codes'() {
        for (const code of ['1', '7', '255']) {
            const command = await Command.start(['sh', '-c', `exit ${code}`]);
            assert.deepEqual(await command.end(), ['Failure', code]);
        }
    },

    async 'no such program'() {
        const command = await Command.start('no-such-program');
        assert.equal((await command.end())[0], 'Failure');
    },

    async 'echo of much input'() {
        const [stdin, data] = [new PassThrough(), randomBytes(4 << 20)];
        const command = await Command.start(halfCloses ? 'cat' : ['head', '-c', `${data.length}`], { stdin });
        stdin.write(data);
        // Without half-close this would be the end of the session.
        if (halfCloses) stdin.end();
        assert.deepEqual(await command.end(), ['Success']);
        assert.equal(command.stdout.length, data.length);
        assert.equal(command.stdout.hash.digest('hex'), createHash('sha256').update(data).digest('hex'));
    },

    async 'much output'() {
        const command = await Command.start(['sh', '-c', 'cat /random; exit 3']);
        assert.deepEqual(await command.end(), ['Failure', '3']);
        const wanted = await Command.start(['sha256sum', '/random']);
        await wanted.end();
        assert.equal(command.stdout.length, 50 << 20);
        assert.equal(command.stdout.hash.digest('hex'), wanted.stdout.text.split(' ')[0]);
    },

    async 'terminal sizes'() {
        const script = `for size in "43 132" "24 80"; do ${awaitSize}; done; exit 5`;
        const command = await Command.start(['sh', '-c', script], { stdin: new PassThrough(), size: [132, 43] });
        await command.stdout.expect('is 43 132\r\n');
        command.stdout.resize(80, 24);
        assert.deepEqual(await command.end(), ['Failure', '5']);
        assert.equal(command.stdout.text, 'is 43 132\r\nis 24 80\r\n');
    },

    async 'attach again and to the end'() {
        const attach = async () => {
            const [stdin, stdout, stderr] = [new PassThrough(), new Output(), new Output()];
            const socket = await new Attach(config, handler).attach('any', pod, lines, stdout, stderr, stdin, false);
            return { stdin, stdout, stderr, socket };
        };
        for (const word of ['one', 'two']) {
            const { stdin, stdout, socket } = await attach();
            stdin.write(`${word}\n`);
            await stdout.expect(`got ${word}\n`);
            socket.close();
            await once(socket, 'close');
        }
        const { stdin, stderr, socket } = await attach();
        stdin.write('end\n');
        // The client keeps the status to itself.
        await once(socket, 'close');
        assert.equal(stderr.text, 'the end\n');
    },

    async 'attach to a terminal'() {
        const [stdin, stdout] = [new PassThrough(), new Output([80, 25])];
        const socket = await new Attach(config, handler).attach('any', pod, terminal, stdout, null, stdin, true);
        for (const [width, height] of [[99, 33], [101, 37]]) {
            stdout.resize(width, height);
            stdin.write(`size="${height} ${width}"; ${awaitSize}\n`);
            await stdout.expect(`\nis ${height} ${width}\r\n`);
        }
        socket.close();
    },

    async 'connections at once'() {
        const open = async () => {
            const [stdin, stdout, stderr] = [new PassThrough(), new Output(), new Output()];
            const socket = await new PortForward(config).portForward('any', pod, [80], stdout, stderr, stdin);
            return { stdin, stdout, stderr, socket };
        };
        const connections = await Promise.all(Array.from({ length: 5 }, open));
        for (const { stdin, stdout, stderr, socket } of connections.reverse()) {
            stdin.write('GET / HTTP/1.0\r\n\r\n');
            await once(socket, 'close');
            assert.match(stdout.text, /200 OK[^]*nginx/);
            assert.equal(stderr.text, '');
        }
    },

    async 'refused port'() {
        const [stdout, stderr] = [new Output(), new Output()];
        const forward = new PortForward(config);
        const socket = await forward.portForward('any', pod, [81], stdout, stderr, new PassThrough());
        await once(socket, 'close');
        assert.match(stderr.text, /81/);
        assert.equal(stdout.text, '');
    },
};

for (const [name, step] of Object.entries(steps)) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error('out of time')), time);
    });
    await Promise.race([step(), late])
        .then(() => console.log(`passed ${name}`))
        .catch((error) => console.log(`FAILED ${name}: ${`${error.stack}`.slice(0, 500).replaceAll(/\s+/g, ' ')}`))
        .finally(() => clearTimeout(timer));
}
// What an unfinished step left must not hold this up.
process.exit();
