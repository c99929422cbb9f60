// Every word of the page, in both languages. A word that is a function is given the numbers and names that it speaks of.

const en = {
  tagline: "Labels a photo, and shows its attention.",
  docs: "API",
  language: "Language",

  photo: "Photo",
  invitation: "Drop a photo here, paste one, or",
  choose: "Choose a photo",
  chooseAnother: "Choose another",
  examples: "Examples",
  espresso: "Espresso",
  cat: "Cat",
  officer: "Officer",
  preview: (name) => `The photo ${name}. The network sees the bright square in its middle.`,
  noPreview: "This browser cannot show this kind of image. The answer is right nevertheless; the maps are shown without the photo.",
  notAPhoto: "That was no file. Drop or paste a photo.",

  labels: "Labels",
  waiting: "Five labels will stand here.",
  first: (label, share) => `First label: ${label}, ${share}.`,
  asking: "Asking for the labels…",
  explaining: (ms) => `Labels after ${ms} ms. Asking for the attention…`,
  explained: (ms, after) => `Labels after ${ms} ms, attention after ${after} ms.`,
  facts: (image, model) => `${image.format}, ${image.width} × ${image.height} pixels · ${model}`,
  accuracy: (top1, images, classes) =>
    `On ${images} photos kept apart, the first of ${classes} labels is right for ${top1} %. It must choose one of them, whatever it is shown.`,

  key: "Key",
  badKey: "This key was not accepted. Another one?",
  useKey: "Use it",
  keyKept: "Kept in this tab until you close it, and sent to this service alone.",
  again: "Try again",

  attention: "Attention, block by block",
  kind: "Kind of map",
  gate: "NAM (paper)",
  product: "Class × strength",
  activation: "Strength",
  class: "Class",
  gateText: "The paper's map: the gates of all channels, averaged by the channels' weights. Measured on the default weights, it points away from what the answer rests on in the first three stages, and says nothing in the last.",
  productText: "Where this block is active and the last one speaks for the first label: the product of the next two kinds.",
  activationText: "The root mean square, over all channels, of what NAM passes on: the block's branch times its gate, before the shortcut is added.",
  classText: "How far each place of the last block speaks for the first label: the mean over all places, plus a constant, is the label's score (class activation map).",
  otherText: (name) => `The map that the service calls ${name}.`,
  opensOn: (name) =>
    `The page opens on “${name}”, the most faithful kind here: measured on the default weights, blurring its brightest places lowers the label's probability most.`,
  blocks: "Blocks, from the first to the last",
  noMap: "none",
  effectShort: (value) => `effect ${value}`,
  range: (low, high) => `${low}\u2009–\u2009${high}`,
  blockTitle: (block) => `${block.name}: ${block.channels} channels, ${block.height} × ${block.width}`,
  mapText: (name, low, high) => `${name}, from ${low} (dark) to ${high} (light).`,
  noMapText: "There is no map of this kind in this block.",
  opacity: "Map over photo",
  falls: (label, by) => `With this block's gates held at their means, the score of “${label}” would fall by ${by}.`,
  rises: (label, by) => `With this block's gates held at their means, the score of “${label}” would rise by ${by}.`,
  still: (std) => `This block hardly modulates: its gates' standard deviation is ${std}. Do not read a pattern into its map.`,
  gates: "Gates",
  mean: "Mean",
  std: "Standard deviation",
  weights: "Channel weights, sorted",
  weightsText: (high, low, even) => `From ${high} down to ${low}. The line is ${even}: all channels alike.`,
  uniform: "All weights are nearly alike: they rank nothing.",
  strongest: "The strongest channels",
  strongestText: "By weight. Their gates over the photo, and how far the score of the first label falls when that channel's gate alone is held at its mean.",
  holding: "Holding each channel at its mean…",
  held: (ms) => `Measured live, ${ms} ms.`,
  channel: "channel",
  weight: "weight",
  effect: "effect",
  channelMap: (channel, low, high) => `Gate of channel ${channel}, from ${low} to ${high}`,

  take: "Take it with you",
  curl: "Command for a shell",
  copy: "Copy",
  copied: "Copied.",
  selected: "Selected: copy it with Ctrl+C.",
  fetching: "Fetching…",
  saved: (name) => `Saved as ${name}.`,

  howToRead: "How to read it",
  howToReadText:
    "A map shows where, the bar beside it how much: dark is the least value in this photo, light the greatest, and the line above the blocks says of what. The effect says what a gate does: how far the score of the first label falls when the gate is held at its mean.",
  notToRead: "What not to read into it",
  notToReadText:
    "Gates do not know the labels and may move little, so the paper's map shows where they are open, not why a label won. No map here proves a cause, and where the range is narrow or the effect near zero the pattern does next to nothing.",

  errors: {
    bad_request: "The service could not read what was sent. Is the file empty?",
    unauthorized: "This service wants a key.",
    not_found: "The service does not have what was asked for.",
    method_not_allowed: "The service does not answer this kind of request.",
    not_acceptable: "The service cannot answer in this format.",
    request_timeout: "The photo arrived too slowly.",
    body_too_large: "The file is larger than the service accepts.",
    image_too_large: "The photo has more pixels than the service accepts.",
    too_many_images: "That is more photos than the service takes at once.",
    unsupported_media_type: "This is not an image that the service reads. JPEG, PNG, WebP, GIF, BMP and TIFF are.",
    bad_image: "The image is damaged or incomplete.",
    bad_parameter: "The service refused a parameter.",
    internal_error: "The service failed. Its log knows more.",
    overloaded: "The service is busy.",
    draining: "The service is shutting down.",
    not_ready: "The service is not ready yet.",
    deadline_exceeded: "The answer took too long and was given up.",
    network: "The service cannot be reached.",
    unknown: "The service answered something that is not understood.",
  },
  problem: (status, detail, id) => [status && `${status}.`, detail, id && `Request ${id}.`].filter(Boolean).join(" "),
};

const zh = {
  tagline: "识别照片，并展示其注意力。",
  docs: "接口",
  language: "语言",

  photo: "照片",
  invitation: "把照片拖到这里，或粘贴，或者",
  choose: "选择照片",
  chooseAnother: "换一张",
  examples: "示例",
  espresso: "浓缩咖啡",
  cat: "猫",
  officer: "军官",
  preview: (name) => `照片 ${name}。网络看到的是中间明亮的正方形。`,
  noPreview: "浏览器无法显示这种图像。结果仍然正确，只是注意力图下面没有照片。",
  notAPhoto: "这不是文件。请拖入或粘贴一张照片。",

  labels: "标签",
  waiting: "五个标签会显示在这里。",
  first: (label, share) => `第一个标签：${label}，${share}。`,
  asking: "正在请求标签……",
  explaining: (ms) => `标签用时 ${ms} 毫秒。正在请求注意力……`,
  explained: (ms, after) => `标签用时 ${ms} 毫秒，注意力用时 ${after} 毫秒。`,
  facts: (image, model) => `${image.format}，${image.width} × ${image.height} 像素 · ${model}`,
  accuracy: (top1, images, classes) =>
    `在 ${images} 张未参与训练的照片上，${classes} 个标签中排第一的有 ${top1} % 是对的。无论看到什么，它都只能从中选一个。`,

  key: "密钥",
  badKey: "这个密钥未被接受。换一个？",
  useKey: "使用",
  keyKept: "只保存在本标签页，关闭即失效；只发送给此服务。",
  again: "重试",

  attention: "逐块的注意力",
  kind: "图的种类",
  gate: "NAM（论文）",
  product: "类别 × 强度",
  activation: "强度",
  class: "类别",
  gateText: "论文中的图：所有通道的门控按通道权重加权平均。用默认权重实测：在前三个阶段，它指向的地方恰恰不是答案的依据；在最后一个阶段，它不说明任何问题。",
  productText: "这一块活跃、且最后一块支持第一个标签的地方：后两种图的乘积。",
  activationText: "NAM 所传递的值（这一块的残差分支乘以门控，尚未与捷径相加）在所有通道上的均方根。",
  classText: "最后一块的每个位置在多大程度上支持第一个标签：所有位置的平均值加上一个常数，就是该标签的得分（类别激活图）。",
  otherText: (name) => `服务称为 ${name} 的图。`,
  opensOn: (name) => `页面默认显示“${name}”，它是这里最忠实的一种：用默认权重实测，先模糊它最亮的地方，标签的概率下降最多。`,
  blocks: "从第一块到最后一块",
  noMap: "无",
  effectShort: (value) => `影响 ${value}`,
  range: (low, high) => `${low}\u2009–\u2009${high}`,
  blockTitle: (block) => `${block.name}：${block.channels} 个通道，${block.height} × ${block.width}`,
  mapText: (name, low, high) => `${name}，从 ${low}（暗）到 ${high}（亮）。`,
  noMapText: "这一块没有这种图。",
  opacity: "图的不透明度",
  falls: (label, by) => `若把这一块的门控固定为各自的均值，“${label}”的得分会下降 ${by}。`,
  rises: (label, by) => `若把这一块的门控固定为各自的均值，“${label}”的得分会上升 ${by}。`,
  still: (std) => `这一块几乎不做调制：门控的标准差只有 ${std}。不要从图中读出规律。`,
  gates: "门控",
  mean: "均值",
  std: "标准差",
  weights: "通道权重（已排序）",
  weightsText: (high, low, even) => `从 ${high} 降到 ${low}。横线是 ${even}：所有通道相同。`,
  uniform: "所有权重几乎相同：排序没有意义。",
  strongest: "最强的通道",
  strongestText: "按权重排列。图是它们在照片上的门控；影响是只把该通道的门控固定为均值时，第一个标签的得分下降多少。",
  holding: "正在逐个固定通道……",
  held: (ms) => `实时测得，${ms} 毫秒。`,
  channel: "通道",
  weight: "权重",
  effect: "影响",
  channelMap: (channel, low, high) => `通道 ${channel} 的门控，从 ${low} 到 ${high}`,

  take: "带走",
  curl: "命令行",
  copy: "复制",
  copied: "已复制。",
  selected: "已选中：按 Ctrl+C 复制。",
  fetching: "正在获取……",
  saved: (name) => `已保存为 ${name}。`,

  howToRead: "怎么读",
  howToReadText:
    "图说明在哪里，旁边的色条说明有多少：暗是这张照片中的最小值，亮是最大值，各块上方的一行字说明是什么的值。“影响”说明门控起什么作用：把它固定为均值后，第一个标签的得分会下降多少。",
  notToRead: "不要读出什么",
  notToReadText:
    "门控不知道标签，变化也可能很小，所以论文的图只说明门控在哪里打开，不说明标签为何胜出。这里没有哪种图能证明因果；范围窄或影响接近零时，图案几乎不起作用。",

  errors: {
    bad_request: "服务读不懂发送的内容。文件是空的吗？",
    unauthorized: "此服务需要密钥。",
    not_found: "服务没有所请求的内容。",
    method_not_allowed: "服务不接受这种请求。",
    not_acceptable: "服务不能以这种格式回答。",
    request_timeout: "照片传得太慢。",
    body_too_large: "文件超过了服务接受的大小。",
    image_too_large: "照片的像素超过了服务接受的数量。",
    too_many_images: "照片多于服务一次接受的数量。",
    unsupported_media_type: "这不是服务能读的图像。可用 JPEG、PNG、WebP、GIF、BMP 和 TIFF。",
    bad_image: "图像损坏或不完整。",
    bad_parameter: "服务拒绝了一个参数。",
    internal_error: "服务出错了，日志里有原因。",
    overloaded: "服务正忙。",
    draining: "服务正在关闭。",
    not_ready: "服务尚未就绪。",
    deadline_exceeded: "回答用时太长，已放弃。",
    network: "无法连接服务。",
    unknown: "服务的回答无法理解。",
  },
  problem: (status, detail, id) => [status && `${status}。`, detail, id && `请求 ${id}。`].filter(Boolean).join(" "),
};

export const LANGUAGES = { en, zh };

const asked = new URLSearchParams(location.search).get("lang");
let language = Object.hasOwn(LANGUAGES, asked) ? asked : navigator.language.startsWith("zh") ? "zh" : "en";

export const lang = () => language;

/** A word in the page's language; a word that is a function gets what it speaks of. */
export function word(name, ...values) {
  const found = LANGUAGES[language][name];
  return typeof found === "function" ? found(...values) : found;
}

/** What an error of the contract is called; `code` is its code. */
export const errorWord = (code) => LANGUAGES[language].errors[code] ?? LANGUAGES[language].errors.unknown;

/** Speak another language, and say so in the address, so that it can be shared. */
export function speak(chosen) {
  language = chosen;
  const address = new URL(location.href);
  address.searchParams.set("lang", chosen);
  history.replaceState(null, "", address);
  translate();
}

/** Write the words into the page: `data-word` is an element's text, `data-label` its name for screen readers. */
export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = word(element.dataset.label);
  for (const button of document.querySelectorAll("[data-lang]")) button.ariaPressed = button.dataset.lang === language;
}
